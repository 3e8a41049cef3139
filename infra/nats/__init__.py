"""The bus: its users, what each may do, and the server configuration made from them."""
