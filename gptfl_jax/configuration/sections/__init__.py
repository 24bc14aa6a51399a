"""Fields of a config, a section a file; `check` binds several of them."""
