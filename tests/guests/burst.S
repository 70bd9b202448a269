# 4,000 posted writes of a counting byte, then a synchronous mark, then halts.
	.include "guest.inc"
_start:	movw $POSTED, %dx
	xorl %eax, %eax
	movl $4000, %ecx
1:	outb %al, %dx
	incb %al
	decl %ecx
	jnz 1b
	mark 'E'
2:	hlt
	jmp 2b
