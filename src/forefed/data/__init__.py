"""Text -> table -> examples -> partition -> one client's data."""
