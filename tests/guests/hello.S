# Writes one synchronous byte, then three posted ones, then one synchronous; then halts.
	.include "guest.inc"
_start:	mark 'A'
	put POSTED, 'b'
	put POSTED, 'c'
	put POSTED, 'd'
	mark 'E'
1:	hlt
	jmp 1b
