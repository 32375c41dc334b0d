"""The Model Context Protocol at `/mcp`: jobs, questions and agents as tools of a model, over the services of REST."""
