"""What the files of datasets have in common: folders, MATLAB files, pickles, and fakes of them."""
