"""Types, keys, settings and tree arithmetic: what every other part stands on."""
