"""New weights from several saved grafts: one file, one method; a decorated function whose signature is its schema."""
