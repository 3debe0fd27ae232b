"""Reports of scored runs: read (`runs`), compare (`compare`), write as Markdown and HTML (`writing`)."""
