"""Many videos or requests to records, from Python as from the command line: resumable, read ahead."""
