"""Pure decisions of the access server."""
