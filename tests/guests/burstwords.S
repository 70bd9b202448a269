# 4,000 posted writes of two bytes, multiples of 257, then a synchronous mark, then halts.
	.include "guest.inc"
_start:	movw $POSTED, %dx
	xorl %eax, %eax
	movl $4000, %ecx
1:	addw $257, %ax
	outw %ax, %dx
	decl %ecx
	jnz 1b
	mark 'E'
2:	hlt
	jmp 2b
