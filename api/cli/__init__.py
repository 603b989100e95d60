"""The `sluicegate` command. It reads the same settings as the server, and works on the same database.

    app       serving, migrating, checking the settings
    tenants   tenants, and what they used
    keys      API keys and tokens
    admins    who may sign in, and the audit log
    shared    how results are shown, and how faults are told

Exit status: 0 done, 1 not found or refused, 2 wrong usage or settings.
"""
