"""Databases of addresses: what opens files and reads other people's formats, for the locator to ask."""
