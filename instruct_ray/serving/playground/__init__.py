"""The playground: a static page at `/` that asks the endpoint, and the route that saves its triples."""
