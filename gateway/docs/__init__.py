"""The API's description: what each route says of itself, the document made of it, and the pages that show it."""
