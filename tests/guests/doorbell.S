# Rings doorbells: 2-byte port writes of 7, 8 and 9; 4-byte memory writes of 1 and 2.
	.include "guest.inc"
_start:	movw $0x400, %dx
	movw $7, %ax
	outw %ax, %dx
	movw $8, %ax
	outw %ax, %dx
	movw $9, %ax
	outw %ax, %dx
	movl $0xd0002000, %ebx
	movl $1, (%rbx)
	movl $2, (%rbx)
	mark 'E'
1:	hlt
	jmp 1b
