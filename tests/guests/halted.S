# Marks that it runs, then halts with interrupts off: nothing but a stop gets it out.
	.include "guest.inc"
_start:	mark 'R'
	cli
1:	hlt
	jmp 1b
