"""The embedded synthetic world: people, cameras, pictures, captions and two datasets."""
