"""Images -> visual tokens [N, M, D]. Only this room knows pixels; another modality is another room of the same kind."""
