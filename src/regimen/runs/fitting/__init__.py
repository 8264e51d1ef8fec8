"""Fitting a mixing law to tables or to finished runs: `regimen fit`, and the fits of methods with stages."""
