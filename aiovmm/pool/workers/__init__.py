"""A pool's guests in processes of their own: an event loop each, one socket to the pool, and the same VM for whoever has one.

    Pool ── Workers ── Worker ══ socket: frames ══ Server ── Guest ── VM
                          └───── RemoteVM, what the program holds ────────┘

frames, plain      what goes over the socket, pure; connection: the socket itself, at either end
source             which worker the next guest is in, and that there is one
process            one worker as the pool sees it: started, asked, and found dead; remote_vm and remote_input: its guests
program, guest     the worker's side; it ends with its socket, or with the process that started it
"""
