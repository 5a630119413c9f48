"""Being told what became of a message: by the log, by failures, and by receipts that can be waited for."""
