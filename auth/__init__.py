"""Who is calling: from the headers of a request to a frozen Principal.

    dependencies  the FastAPI security schemes; what a route asks for
    authenticator credential -> Principal
    memory        what is remembered of accounts, so that a warm call does no I/O, and when it is forgotten
    door          a limit on failures by address
    keys          API keys: minting, recognising, comparing
    tokens        our own JWTs: from a sign-in, or bought with a key
    issuers, jwks JWTs of the company's identity providers, and their keys
    jws           signatures; the only file that imports jose
    passwords     argon2; the only file that imports passlib
    principal     the words that all of them share

Fails closed: whatever is not understood is refused. Nothing here imports from `api`.
"""
