"""The edge: HTTP in, use cases called, HTTP out. No torch and no BentoML here."""
