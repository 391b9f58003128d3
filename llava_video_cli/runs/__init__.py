"""Many videos to records: resumable, one bad file at a time."""
