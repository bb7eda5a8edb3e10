"""The HTTP server: routes and schemas, what stands before them, the process."""
