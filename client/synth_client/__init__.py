"""A hospital: its data, its ledger, its rounds."""
