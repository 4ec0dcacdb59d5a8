"""Every setting of a training run, in one validated record; flat on the command line, in files and in config.json.

What is known of an option - default, help, name, heading - stands once, at its field.  Where a value comes from, the later
winning: the defaults here (of a real model), the mode's, the recipe of the backbone, the preset, the file, the command line.
"""
