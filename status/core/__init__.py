"""Pure decisions of the status cluster."""
