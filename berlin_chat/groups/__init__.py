"""Several providers that look like one."""
