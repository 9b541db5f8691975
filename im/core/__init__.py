"""Pure decisions of the message services."""
