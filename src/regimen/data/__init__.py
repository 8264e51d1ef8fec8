"""From text to pools of token rows: `prepare` makes them, `Pool` reads them."""
