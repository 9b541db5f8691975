"""Pure decisions shared by the services: values in, values out, time as an argument."""
