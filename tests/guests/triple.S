# Touches an unmapped page with no interrupt table to take the fault: a triple fault.
	.include "guest.inc"
_start:	mark 'T'
	movabsq $0x4000000000, %rax
	movb (%rax), %al
