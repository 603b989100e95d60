"""One technology each, named port_technology. Only `api.runtime` imports from here."""
