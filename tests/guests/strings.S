# String instructions as long as they get: writes to the posted port, four thousand million of them.
	.include "guest.inc"
_start:	mark 'R'
	cld
	movw $POSTED, %dx
	movl $0x10000, %esi
	movl $0xffffffff, %ecx
	rep outsb
	mark 'E'
1:	hlt
	jmp 1b
