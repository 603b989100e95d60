"""Sluicegate: a multi-tenant streaming gateway for LLMs.

The life of one request:

    edge            request id, body cap                                    edge.py
    authenticate    header -> Principal                                     auth/
    parse           body -> Order, in its dialect                           routes/chat.py, core/dialects/
    admit           all limits at once, in Redis; or wait for one           flow/admit.py, core/limits.py
    book            the row "in flight", beside the call                    flow/book.py
    call            open an upstream, or the next one                       flow/call.py, core/catalog.py
    relay           read, count, translate, send, as far as credit goes     flow/relay.py, core/translate/
    settle          booking -> usage event, slot back, then `[DONE]`        flow/settle.py

`flow/walk.py` is the Response that takes a request through it. `runtime.py` chooses the adapters.
"""
