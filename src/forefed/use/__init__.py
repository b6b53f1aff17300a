"""What is done with a finished run: predict, export, forget."""
