# Writes to the ports that drop what they show already: 5 and 6. The same byte, another one, both, and both of which one differs.
	.include "guest.inc"
_start:	put SAME, 5
	put SAME, 4
	movw $SAME, %dx
	movw $0x0605, %ax
	outw %ax, %dx
	movw $0x0705, %ax
	outw %ax, %dx
	inw %dx, %ax
	movw %ax, 0x60000
	mark 'E'
1:	hlt
	jmp 1b
