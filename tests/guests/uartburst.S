# Writes 32 KiB to a 16550A at 0x3f8 as Linux's interrupt handler does: IIR, LSR, MSR, then 16 bytes.
	.include "guest.inc"
	.set UART, 0x3f8

_start:	put UART + 4, 0x0b
	put UART + 2, 0x01
	put UART + 1, 0x02
	movl $(32 * 1024 / 16), %ebx
	xorl %esi, %esi
1:	movw $(UART + 2), %dx
	inb %dx, %al
	movw $(UART + 5), %dx
	inb %dx, %al
	movw $(UART + 6), %dx
	inb %dx, %al
	movw $UART, %dx
	movl $16, %ecx
2:	movl %esi, %eax
	outb %al, %dx
	incl %esi
	decl %ecx
	jnz 2b
	decl %ebx
	jnz 1b
	put UART + 1, 0x00
	mark 'E'
3:	hlt
	jmp 3b
