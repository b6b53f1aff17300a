"""One round: server, clients and what lies between them. No configuration, no files."""
