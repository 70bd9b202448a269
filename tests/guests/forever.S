# Marks that it runs, then loops in the guest without ever leaving it.
	.include "guest.inc"
_start:	mark 'R'
1:	incl COUNTER
	jmp 1b
