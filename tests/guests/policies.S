# Goes through every policy of the fast range: latched bytes, noted and ignored ones, and ports that nobody claims.
	.include "guest.inc"
	.set RESULTS, 0x60000
_start:	movl $RESULTS, %edi
	movw $LATCH, %dx
	movb $0x5a, %al
	outb %al, %dx
	xorl %eax, %eax
	inb %dx, %al			# what was just latched
	movb %al, 0(%rdi)
	movw $NOTED, %dx
	inw %dx, %ax
	movw %ax, 2(%rdi)
	put IGNORED, 0x99
	inb %dx, %al
	movb %al, 4(%rdi)
	movw $NOBODY, %dx
	outl %eax, %dx
	inl %dx, %eax
	movl %eax, 8(%rdi)
	movw $(LATCH - 1), %dx		# one posted byte and one latched: posted; the latch takes its own byte
	movw $0x2211, %ax
	outw %ax, %dx
	inw %dx, %ax			# the posted byte has no shadow: the whole read waits
	movw %ax, 12(%rdi)
	movw $(NOTED - 1), %dx		# a latched and a noted byte: the write is neither posted nor ignored by all
	movw $0x4433, %ax
	outw %ax, %dx
	mark 'E'
1:	hlt
	jmp 1b
