# Writes the posted port without end, a counting byte each time.
	.include "guest.inc"
_start:	movw $POSTED, %dx
	xorl %eax, %eax
1:	outb %al, %dx
	incb %al
	jmp 1b
