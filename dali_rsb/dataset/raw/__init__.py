"""Images that shards hold as pixels, so that a crop is read and nothing is decoded.

In a shard such an image is a binary PPM, which every program of images reads: a header, and rows of
RGB pixels. `layout` writes it and chooses the images, `places` says where the rows of a window lie,
`reading` reads them, `store` is the dataset.
"""
