"""Who is calling: from the headers of a request to a frozen Principal.

    dependencies  the FastAPI security schemes; what a route asks for
    authenticator credential -> Principal; remembers keys for a second, so a warm call does no I/O
    keys          API keys: minting, recognising, comparing
    tokens        JWTs; the only file that imports jose
    passwords     argon2; the only file that imports passlib
    principal     the words that all of them share

Fails closed: whatever is not understood is refused. Nothing here imports from `api`.
"""
