// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vfio-pci variant driver that reports whatever sparse mmap areas its module
 * parameters name, and refuses every mmap of that BAR that does not lie in one
 * of them, even where two areas touch, as idxd's mediated devices do.
 *
 * It exists for tests: the areas may leave the BAR, overlap, or cover parts of
 * a page, and are reported just as they were given. A device keeps the
 * parameters with which it was bound, so several devices can have several
 * layouts.
 *
 *   bar=N          the BAR they apply to (default 0)
 *   areas=LIST     "offset:size,offset:size"; "" for a capability without
 *                  areas; "none" for no sparse capability at all, that is, for
 *                  what vfio-pci itself does
 */

#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>

#define MAX_AREAS 64

struct sparse_layout {
	unsigned int bar;
	bool none;
	unsigned int nr_areas;
	struct vfio_region_sparse_mmap_area areas[MAX_AREAS];
};

struct sparse_device {
	struct vfio_pci_core_device core;
	struct sparse_layout layout; /* as the parameters were at probe */
};

/* What the parameters say now; guarded by kernel_param_lock(). */
static struct sparse_layout wanted = { .none = true };

static int parse_area(char *text, struct vfio_region_sparse_mmap_area *area)
{
	char *offset = strsep(&text, ":");
	int ret;

	if (!text)
		return -EINVAL;
	ret = kstrtoull(offset, 0, &area->offset);
	return ret ?: kstrtoull(text, 0, &area->size);
}

static int areas_set(const char *value, const struct kernel_param *kp)
{
	struct sparse_layout *layout;
	char *copy, *rest, *item;
	int ret = 0;

	layout = kzalloc(sizeof(*layout), GFP_KERNEL);
	copy = kstrdup(value, GFP_KERNEL);
	if (!layout || !copy) {
		ret = -ENOMEM;
		goto out;
	}

	rest = strim(copy);
	layout->bar = wanted.bar;
	layout->none = !strcmp(rest, "none");
	if (layout->none || !*rest)
		goto take;

	while ((item = strsep(&rest, ","))) {
		if (layout->nr_areas == MAX_AREAS) {
			ret = -E2BIG;
			goto out;
		}
		ret = parse_area(item, &layout->areas[layout->nr_areas++]);
		if (ret)
			goto out;
	}
take:
	wanted = *layout;
out:
	kfree(copy);
	kfree(layout);
	return ret;
}

static int areas_get(char *buffer, const struct kernel_param *kp)
{
	int length = 0;
	unsigned int i;

	if (wanted.none)
		return sysfs_emit(buffer, "none\n");
	for (i = 0; i < wanted.nr_areas; i++)
		length += sysfs_emit_at(buffer, length, "%s0x%llx:0x%llx", i ? "," : "",
					wanted.areas[i].offset, wanted.areas[i].size);
	return length + sysfs_emit_at(buffer, length, "\n");
}

static const struct kernel_param_ops areas_ops = {
	.set = areas_set,
	.get = areas_get,
};

module_param_cb(areas, &areas_ops, NULL, 0644);
MODULE_PARM_DESC(areas, "sparse areas \"offset:size,...\", empty, or \"none\"");
module_param_named(bar, wanted.bar, uint, 0644);
MODULE_PARM_DESC(bar, "BAR that the areas are reported for");

static struct sparse_device *to_sparse(struct vfio_device *vdev)
{
	return container_of(vdev, struct sparse_device, core.vdev);
}

/* Does the device report areas for this region? */
static bool is_sparse(const struct sparse_device *sparse, unsigned int index)
{
	return !sparse->layout.none && index == sparse->layout.bar &&
	       index <= VFIO_PCI_BAR5_REGION_INDEX && pci_resource_len(sparse->core.pdev, index);
}

/* Does one area hold all of [start, end)? */
static bool is_mappable(const struct sparse_layout *layout, u64 start, u64 end)
{
	unsigned int i;

	for (i = 0; i < layout->nr_areas; i++) {
		const struct vfio_region_sparse_mmap_area *area = &layout->areas[i];

		if (start < area->offset || start - area->offset >= area->size)
			continue;
		if (area->size - (start - area->offset) >= end - start)
			return true;
	}
	return false;
}

static int add_capabilities(struct sparse_device *sparse, struct vfio_info_cap *caps)
{
	const struct sparse_layout *layout = &sparse->layout;
	struct vfio_info_cap_header msix = {
		.id = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
		.version = 1,
	};
	struct vfio_region_info_cap_sparse_mmap *cap;
	size_t size = struct_size(cap, areas, layout->nr_areas);
	int ret;

	cap = kzalloc(size, GFP_KERNEL);
	if (!cap)
		return -ENOMEM;
	cap->header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
	cap->header.version = 1;
	cap->nr_areas = layout->nr_areas;
	memcpy(cap->areas, layout->areas, layout->nr_areas * sizeof(*cap->areas));
	ret = vfio_info_add_capability(caps, &cap->header, size);
	kfree(cap);

	/* As vfio_pci_core does for a BAR that holds the MSI-X table. */
	if (!ret && sparse->core.pdev->msix_cap && sparse->core.msix_bar == layout->bar)
		ret = vfio_info_add_capability(caps, &msix, sizeof(msix));
	return ret;
}

/* What a sparse region's information is, but for the place of the capabilities. */
static int describe_region(struct sparse_device *sparse, struct vfio_region_info *info,
			   struct vfio_info_cap *caps)
{
	info->offset = VFIO_PCI_INDEX_TO_OFFSET(info->index);
	info->size = pci_resource_len(sparse->core.pdev, info->index);
	info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE |
		      VFIO_REGION_INFO_FLAG_CAPS;
	if (sparse->core.bar_mmap_supported[info->index])
		info->flags |= VFIO_REGION_INFO_FLAG_MMAP;
	return add_capabilities(sparse, caps);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
/* Here VFIO itself copies what this returns; vfio_pci_core_ioctl no longer does. */
static int sparse_get_region_info(struct vfio_device *vdev, struct vfio_region_info *info,
				  struct vfio_info_cap *caps)
{
	if (!is_sparse(to_sparse(vdev), info->index))
		return vfio_pci_ioctl_get_region_info(vdev, info, caps);
	return describe_region(to_sparse(vdev), info, caps);
}
#else
static long get_region_info(struct sparse_device *sparse, void __user *arg)
{
	const size_t minsz = offsetofend(struct vfio_region_info, offset);
	struct vfio_info_cap caps = {};
	struct vfio_region_info info;
	long ret;

	if (copy_from_user(&info, arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	if (!is_sparse(sparse, info.index))
		return vfio_pci_core_ioctl(&sparse->core.vdev, VFIO_DEVICE_GET_REGION_INFO,
					   (unsigned long)arg);

	info.cap_offset = 0;
	ret = describe_region(sparse, &info, &caps);
	if (!ret && info.argsz >= sizeof(info) + caps.size) {
		vfio_info_cap_shift(&caps, sizeof(info));
		info.cap_offset = sizeof(info);
		if (copy_to_user(arg + sizeof(info), caps.buf, caps.size))
			ret = -EFAULT;
	} else if (!ret) {
		info.argsz = sizeof(info) + caps.size;
	}
	kfree(caps.buf);
	if (!ret && copy_to_user(arg, &info, minsz))
		ret = -EFAULT;
	return ret;
}

static long sparse_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	if (cmd == VFIO_DEVICE_GET_REGION_INFO)
		return get_region_info(to_sparse(vdev), (void __user *)arg);
	return vfio_pci_core_ioctl(vdev, cmd, arg);
}
#endif

static int sparse_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	struct sparse_device *sparse = to_sparse(vdev);
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	unsigned int index = VFIO_PCI_OFFSET_TO_INDEX(start);

	start &= VFIO_PCI_OFFSET_MASK;
	if (is_sparse(sparse, index) &&
	    !is_mappable(&sparse->layout, start, start + (vma->vm_end - vma->vm_start)))
		return -EINVAL;
	return vfio_pci_core_mmap(vdev, vma);
}

static int sparse_open_device(struct vfio_device *vdev)
{
	struct sparse_device *sparse = to_sparse(vdev);
	int ret = vfio_pci_core_enable(&sparse->core);

	if (!ret)
		vfio_pci_core_finish_enable(&sparse->core);
	return ret;
}

static const struct vfio_device_ops sparse_ops = {
	.name = "sparse-vfio-pci",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = sparse_open_device,
	.close_device = vfio_pci_core_close_device,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	.ioctl = vfio_pci_core_ioctl,
	.get_region_info_caps = sparse_get_region_info,
#else
	.ioctl = sparse_ioctl,
#endif
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = sparse_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	/* Called without asking whether it is there. */
	.match_token_uuid = vfio_pci_core_match_token_uuid,
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
#endif
};

static int sparse_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct sparse_device *sparse;
	int ret;

	sparse = vfio_alloc_device(sparse_device, core.vdev, &pdev->dev, &sparse_ops);
	if (IS_ERR(sparse))
		return PTR_ERR(sparse);
	dev_set_drvdata(&pdev->dev, &sparse->core);
	kernel_param_lock(THIS_MODULE);
	sparse->layout = wanted;
	kernel_param_unlock(THIS_MODULE);
	ret = vfio_pci_core_register_device(&sparse->core);
	if (ret)
		vfio_put_device(&sparse->core.vdev);
	return ret;
}

static void sparse_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);

	vfio_pci_core_unregister_device(core);
	vfio_put_device(&core->vdev);
}

/* Only devices whose driver_override names this driver are ever matched. */
static const struct pci_device_id sparse_table[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{},
};
MODULE_DEVICE_TABLE(pci, sparse_table);

static struct pci_driver sparse_driver = {
	.name = "sparse-vfio-pci",
	.id_table = sparse_table,
	.probe = sparse_probe,
	.remove = sparse_remove,
	.err_handler = &vfio_pci_core_err_handlers,
	.driver_managed_dma = true,
};
module_pci_driver(sparse_driver);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The barfs authors");
MODULE_DESCRIPTION("vfio-pci variant that reports sparse mmap areas for tests");
