"""BachVid: several videos of one character in one place, from a video model never trained for it.

`bachvid.run` makes one group of videos and is the file to read first. `models` holds the networks and
`sampling` the way from noise to video, each usable alone; `method` is the paper; the rest stands above them.
"""

__version__ = "0.1.0"
