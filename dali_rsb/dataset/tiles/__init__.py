"""JPEGs cut into tiles by restart markers, so that a window is read and decoded without the rest.

`transcoding` makes such a JPEG of another, `layout` says where its tiles lie, `assembly` puts the
tiles of windows together to small JPEGs.
"""
