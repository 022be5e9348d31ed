/* Reading CRIU's images: two magic numbers, then messages, each behind its 32-bit length. */
#ifndef EMULAB_IMAGE_H
#define EMULAB_IMAGE_H
#include <stddef.h>
#include <stdint.h>

#define IMAGE_MAGICS 8

static inline const uint8_t *image_varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; at < end && shift < 64; shift += 7) {
		*value |= (uint64_t)(*at & 0x7f) << shift;
		if (!(*at++ & 0x80))
			return at;
	}
	return NULL;
}

/* One field of a message; returns what follows it. ``value`` is a number or, for kind 2, the length of the bytes at ``data``. */
static inline const uint8_t *image_field(const uint8_t *at, const uint8_t *end, unsigned *number, uint64_t *value, const uint8_t **data)
{
	uint64_t key;
	*data = NULL;
	*value = 0;
	if (!(at = image_varint(at, end, &key)))
		return NULL;
	*number = key >> 3;
	switch (key & 7) {
	case 0:
		return image_varint(at, end, value);
	case 1:
		return end - at < 8 ? NULL : at + 8;
	case 5:
		return end - at < 4 ? NULL : at + 4;
	case 2:
		if (!(at = image_varint(at, end, value)) || *value > (uint64_t)(end - at))
			return NULL;
		*data = at;
		return at + *value;
	}
	return NULL;
}

#endif
