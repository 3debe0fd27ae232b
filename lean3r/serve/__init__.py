"""A web service for reconstructions: jobs in SQLite, a worker process for each device, pages and a REST interface."""
